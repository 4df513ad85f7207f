"""How a pruned model learns to speak like its target, and whether that pays.

``distilling`` lets the target answer prompts (``rewriting`` in its own words); ``examples``, ``losses``, ``parallel`` and
``training`` make ``recovery``; ``judging`` says without an engine how often a draft is right; ``merging`` makes one draft
of two; ``sweeping`` varies a recipe. ``measuring`` times steps in the engine, ``predicting`` and ``choosing`` decide from
that, ``pairing`` writes the pair. ``comparing`` serves several ``methods`` side by side, ``asking`` them in turns of
``blocks`` through ``client``; ``cells`` makes rows of the answers, ``table``, ``report`` and ``pictures`` show them.
``verifying`` tests that outputs are the target's (``exact``, ``distribution``, ``ties``). ``building`` walks a recipe.
"""
