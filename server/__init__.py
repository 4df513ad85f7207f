"""The gateway, and the supervision of a local inference engine. Meets the offline half through files only.

A request's way: ``reception`` asks whose it is, ``inbound`` reads it, ``door`` lets it in, ``pools`` picks one of the
``fleet``'s engines by its ``facts``, ``relay`` passes the answer on from ``upstream``, ``stream`` reads along, ``metrics``
counts what its ``exchange`` says. ``app`` has the routes and ``run`` assembles it all; ``engine``, ``engine_command`` and
``launching`` start an engine, ``in_engine`` is what runs inside it, and ``pair`` reads what the offline half wrote.
"""
