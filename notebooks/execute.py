"""python notebooks/execute.py notebooks/evaluate.ipynb: run a notebook from top to bottom and store
its outputs in it.

Times and names of the machine are left out. A cell that fails is an error, and the file stays as it
was.
"""

import pathlib
import sys

import nbclient
import nbformat

METADATA = {
  "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
  "language_info": {"name": "python"},
}
# seconds that one cell may take
TIMEOUT = 1800


def main(path):
  path = pathlib.Path(path)
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook,
    kernel_name="python3",
    timeout=TIMEOUT,
    record_timing=False,
    resources={"metadata": {"path": str(path.parent)}},
  )
  client.execute()
  notebook.metadata = nbformat.from_dict(METADATA)
  nbformat.validate(notebook)
  nbformat.write(notebook, path)


if __name__ == "__main__":
  main(*sys.argv[1:])
