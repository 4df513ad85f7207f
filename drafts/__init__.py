"""How a pruned model learns to speak like its target: prompts, self-distilled data, recovery, measuring, choosing."""
