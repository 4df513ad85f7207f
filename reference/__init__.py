"""The embedded reference target: its corpus, its prompts, and the script that trained it."""
