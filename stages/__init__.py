"""What every stage has in common: settings, folders written by rename, hashes, provenance, progress, errors."""
