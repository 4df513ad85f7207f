"""Which weights go: calibration -> scores -> plan -> surgery -> checkpoint.

``calibration`` turns texts into token batches; ``scores`` measures how little each layer does on them (``measured`` is
the record of it); ``selection`` turns scores into kept layers; ``plan`` writes that decision down; ``surgery`` carries
it out; ``checkpoint`` reads and writes models; ``sizes`` counts parameters from a config alone; ``families`` is the
only place that knows how a model family is built; ``prune`` holds the stages.

Narrower FFNs (CFSP and its baselines): ``statistics`` runs the one forward pass, ``criteria`` ranks a layer's channels,
``allocation`` says how many each layer keeps, ``prune_width`` is the stage; ``width`` slices, ``export`` writes a plain
model or one for ``ragged``, the classes of models whose layers have shapes of their own. ``nuteprune`` trains what to keep.
"""
