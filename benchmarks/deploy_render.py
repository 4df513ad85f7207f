"""The section of RESULTS.md on the deployed stack, from deploy.json."""

from __future__ import annotations

from typing import Any


def split(title: str, parts: dict[str, float]) -> str:
    """One row of the table: a way's whole time, and what it is made of."""
    return (
        f"| {title} | {sum(parts.values()):.0f} | " + ", ".join(f"{name} {s:.1f}" for name, s in parts.items()) + " |"
    )


def seen(counts: dict[str, int]) -> str:
    """How clients' requests ended."""
    return ", ".join(f"{number:,} {ended}" for ended, number in sorted(counts.items()))


def deploy(record: dict[str, Any]) -> str:
    """The section, from the figures that the deployment test left."""
    hardware = record["hardware"]
    return "\n\n".join(
        [
            "## The stack on a Docker engine",
            "Command: `make results-deploy` (file: `benchmarks/deploy.json`).",
            f"Hardware: {hardware['cpu']}, {hardware['cores']} cores; revision {record['revision']}, {record['date']}. Docker "
            f"{record['docker']}, a pico pair, images of this checkout on base images made of Debian's packages, Prometheus but "
            "no Grafana. One run of the deployment test.",
            "\n".join(
                [
                    "| way | seconds | of them |",
                    "|---|---|---|",
                    split("`docker compose up` on built images to the first answer", record["first_answer_s"]),
                    split("the engine's process killed, until ready again", record["recovery_s"]),
                    split("`docker kill` of the engine, with the keeper", record["recovery_after_docker_kill_s"]),
                    f"| `docker compose stop` under load | {record['stop_s']:.0f} | |",
                ]
            ),
            f"Four clients that ask all the time, two of them for streams, saw while the engine was killed: "
            f"{seen(record['seen_by_clients'])}; at `docker kill`: {seen(record['seen_at_docker_kill'])}; while the stack was "
            f"stopped: {seen(record['seen_at_stop'])}.",
        ]
    )
