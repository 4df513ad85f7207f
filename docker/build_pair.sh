#!/bin/sh
# build_pair.sh RECIPE [ARGUMENTS]: builds the pair of /model into /pair, unless one is there. The pair is written last, so that
# an interrupted build goes on where it stopped, and a volume without a pair is never taken for one with.
set -eu
if [ -f /pair/pair/serving.json ]; then
    echo "builder: /pair/pair is there; to build anew, remove the volume or name another in PAIR"
    exit 0
fi
recipe=$1
shift
exec understudy build "$recipe" --target /model --out /pair "$@"
