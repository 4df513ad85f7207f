#!/bin/sh
# install.sh ARGUMENTS: pip install ARGUMENTS into /venv. Wheels lying in /wheelhouse are used; build arguments that were given
# empty are no settings at all.
set -eu
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_NO_INDEX; do
    eval "value=\${$name:-}"
    if [ -z "$value" ]; then unset "$name"; fi
done
exec /venv/bin/python -m pip install --no-deps --no-compile --disable-pip-version-check --find-links /wheelhouse "$@"
