#!/usr/bin/env bash
# Runs the tests, on a fresh machine with Python 3.11 or newer, but for those that take
# minutes. All cores share them, a file at a time. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
exec .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder \
  -m "not slow" "$@"
