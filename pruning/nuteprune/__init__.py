"""NutePrune (arXiv 2402.09773): L0 masks over structures, taught by many sparser versions of the one resident model.

``masks`` is the hard-concrete distribution, ``sparsity`` counts what masks remove, ``lagrangian`` drives them to the wanted
sparsity, ``teachers`` says which version teaches when; all four are pure. ``resident`` puts masks and LoRA around the one frozen
base, ``loss`` compares student and teacher, ``training`` runs the search and the fine-tuning after it, ``export`` folds and
slices, ``stage`` is the stage of ``understudy prune --method nuteprune``.
"""
