#!/usr/bin/env bash
# Builds .peers/NAME from peers/NAME.txt, which is complete: nothing is resolved. What stands in peers/stubs/NAME goes beside it.
set -euo pipefail
name=$1 python=${2:-python3}
cd "$(dirname "$0")/.."
rm -rf ".peers/$name"
"$python" -m venv ".peers/$name"
bin=".peers/$name/bin"
"$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "peers/$name.txt"
"$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
if [ -d "peers/stubs/$name" ]; then
    cp -r "peers/stubs/$name/." "$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
fi
