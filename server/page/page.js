"use strict";
// Asks for /live.json every two seconds and writes it into the page, as text only.

const EVERY_MS = 2000;
const shown = (value, digits = 2, unit = "") => (value === null || value === undefined ? "–" : value.toFixed(digits) + unit);

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function definitions(pairs) {
  const list = element("dl");
  for (const [name, value] of pairs) list.append(element("dt", name), element("dd", value));
  return list;
}

function bars(shares) {
  const list = element("ul", "", "bars");
  list.setAttribute("aria-label", "acceptance by position");
  shares.forEach((share, index) => {
    const row = element("li"), bar = element("i");
    bar.style.width = `${(100 * share).toFixed(1)}%`;
    row.append(element("span", `token ${index + 1}`), bar, element("span", shown(100 * share, 0, " %")));
    list.append(row);
  });
  return list;
}

function pool(found) {
  const box = element("article", "", "pool"), title = element("h3", found.name);
  if (found.state) title.append(element("span", found.state, `badge ${found.state}`));
  const share = found.share === null || found.share === undefined ? [] : [["share of traffic", shown(100 * found.share, 0, " %")]];
  const time = ["time per output token", shown(found.tpot_s === null ? null : 1000 * found.tpot_s, 2, " ms")];
  const speculation = found.draft === null ? [["draft", "none"]] : [
    ["acceptance length", `${shown(found.mean_acceptance_length)} (expected ${shown(found.expected_mean_acceptance_length)})`],
    ["speed-up", `expected ${shown(found.speedup.expected)}, seen: ${shown(found.speedup.from_acceptance)} from acceptance, ` +
      `${shown(found.speedup.measured)} beside a plain pool`],
  ];
  box.append(title, definitions([...share, ...speculation, time]), bars(found.acceptance_by_position));
  return box;
}

function show(live) {
  document.getElementById("state").textContent = `${live.models.join(", ")}: ${live.phase}`;
  document.getElementById("tokens").textContent = shown(live.output_tokens_per_s, 1);
  document.getElementById("requests").textContent = shown(live.requests_per_s, 2);
  document.getElementById("in-flight").textContent = live.requests_in_flight;
  document.getElementById("pools").replaceChildren(...live.pools.map(pool));
  document.getElementById("engines").replaceChildren(
    ...live.engines.map((engine) => element("li", `${engine.name} (${engine.pool}): ${engine.state}, ${engine.in_flight} in flight`)));
  document.getElementById("alerts").replaceChildren(...live.alerts.map((alert) => element("li", `${alert.at}  ${alert.text}`)));
}

async function refresh() {
  try {
    const answer = await fetch("live.json");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    document.getElementById("state").textContent = `no figures: ${error.message}`;
  }
  setTimeout(refresh, EVERY_MS);
}

refresh();
