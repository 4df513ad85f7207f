"""How good a model is by itself, and how much of its target's goodness a pruned one keeps; lm-evaluation-harness inside."""
