#!/usr/bin/env bash
# Checks the style of the code with ruff, in an environment of its own; --fix mends what it can.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.17.6
if [ "$(.venv-lint/bin/ruff --version 2>/dev/null)" != "ruff $version" ]; then
  "${PYTHON:-python3}" -m venv --clear .venv-lint
  .venv-lint/bin/python -m pip install --quiet "ruff==$version"
fi
case ${1:-} in
  --fix) .venv-lint/bin/ruff check --fix . && .venv-lint/bin/ruff format . ;;
  "") .venv-lint/bin/ruff check . && .venv-lint/bin/ruff format --check . ;;
  *) sed -n '2s/^# //p' "$0" >&2 && exit 2 ;;
esac
