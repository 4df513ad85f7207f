"""Which weights go: calibration -> scores -> plan -> surgery -> checkpoint.

``calibration`` turns texts into token batches; ``scores`` measures how little each layer does on them (``measured`` is
the record of it); ``selection`` turns scores into kept layers; ``plan`` writes that decision down; ``surgery`` carries
it out; ``checkpoint`` reads and writes models; ``sizes`` counts parameters from a config alone; ``families`` is the
only place that knows how a model family is built; ``prune`` holds the stages; ``nuteprune`` is a
method that trains what to keep.
"""
