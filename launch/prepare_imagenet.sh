#!/usr/bin/env bash
# Prepares ImageNet from its two original tars in FOLDER; downloads no data.
#   launch/prepare_imagenet.sh FOLDER                     TFDS's imagenet2012, as ArrayRecord
#   launch/prepare_imagenet.sh FOLDER --resized OUT.tar   a copy with smaller images instead
# If it was stopped, the same command continues.
set -euo pipefail

if [ $# -ne 1 ] && { [ $# -ne 3 ] || [ "$2" != --resized ]; }; then
  sed -n '2,5s/^# //p' "$0" >&2
  exit 2
fi
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
folder=$(absolute "$1")
resized=${3:+$(absolute "$3")}

source "$(dirname "$0")/environment.sh"
if [ -n "$resized" ]; then
  exec .venv/bin/llc prepare resize "$folder" "$resized"
fi
if ! .venv/bin/python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("tensorflow"))'; then
  echo "Installing TensorFlow into .venv ..."
  if command -v uv >/dev/null; then
    uv pip install --quiet --python .venv/bin/python --constraint requirements.txt tensorflow
  else
    .venv/bin/python -m pip install --quiet --constraint requirements.txt tensorflow
  fi
fi
exec .venv/bin/llc prepare imagenet "$folder"
