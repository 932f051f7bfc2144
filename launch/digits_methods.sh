#!/usr/bin/env bash
# The digits by every method of guidance: trains the classifier and the model, then sweeps all
# methods. Options are passed on to the last command. PYTHON: the interpreter, python by default.
set -euo pipefail
python=${PYTHON:-python}
# where configs/digits_methods.py looks for the classifier, and for the model's earlier checkpoint
"$python" -m cfg.main --config=configs/digits_classifier.py --mode=train --workdir=runs/digits_classifier
"$python" -m cfg.main --config=configs/digits_methods.py --workdir=runs/digits "$@"
