"""The gateway, and the supervision of a local inference engine. Meets the offline half through files only."""
