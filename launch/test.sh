#!/usr/bin/env bash
# Runs the tests, on a fresh machine with Python 3.11 or newer, on all cores; each test file
# runs on one core. The arguments are passed to pytest.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
exec .venv/bin/python -m pytest --numprocesses=auto --dist=loadfile "$@"
