"""What all figures share: colours, legends, names in any writing, and how they are saved."""

import functools

import matplotlib.figure
import matplotlib.font_manager
import matplotlib.text
import numpy as np

from cfg.base import files

# longest class name shown in a figure, in characters
LONGEST = 24
EAST_ASIAN = (
  "Noto Sans CJK SC",
  "Noto Sans CJK JP",
  "Source Han Sans SC",
  "WenQuanYi Zen Hei",
  "WenQuanYi Micro Hei",
  "Droid Sans Fallback",
  "Microsoft YaHei",
  "SimHei",
  "PingFang SC",
  "Heiti TC",
  "Hiragino Sans GB",
  "Hiragino Sans",
  "Yu Gothic",
  "Malgun Gothic",
  "Arial Unicode MS",
)
BLUE, ORANGE, GREY = "#1f5fa8", "#d9741a", "#6b6b6b"
COLOURS = (BLUE, ORANGE, "#3a923a", "#8e4fa8", "#b03a3a", "#7a5230", "#c25a9b", GREY)
DOTS = dict(marker="o", markersize=4, linewidth=1.5, capsize=2)
# candidate legend positions: matplotlib's name -> centre, in axes coordinates
PLACES = {
  "upper right": (0.75, 0.9),
  "upper left": (0.25, 0.9),
  "lower right": (0.75, 0.1),
  "lower left": (0.25, 0.1),
  "center right": (0.75, 0.5),
  "center left": (0.25, 0.5),
}


def place_legend(axes):
  """In the place where the fewest points of lines lie (loc="best" would take seconds on a slow
  machine).
  """
  if not axes.get_legend_handles_labels()[0]:
    return
  axes.autoscale_view()
  inside = axes.transAxes.inverted()
  points = [inside.transform(line.get_transform().transform(_dense(line))) for line in axes.lines]
  near = np.concatenate(points)[:, None] - list(PLACES.values())
  crowd = np.sum(np.all(np.abs(near) < [0.28, 0.13], axis=2), axis=0)
  axes.legend(fontsize=8, frameon=False, loc=list(PLACES)[int(crowd.argmin())])


def _dense(line):
  """Points along a line, 20 to a segment; of markers alone, those."""
  vertices = line.get_xydata()
  if line.get_linestyle() == "None":
    return vertices
  return np.concatenate(
    [vertices, *(np.linspace(a, b, 20) for a, b in zip(vertices, vertices[1:]))]
  )


def save(figure, path):
  """Write a matplotlib figure as PNG, under a temporary name first."""
  for text in figure.findobj(matplotlib.text.Text):
    text.set_fontfamily(_families())
  with files.replacing(path) as tmp:
    figure.savefig(tmp, format="png", bbox_inches="tight", pad_inches=0.1)


@functools.cache
def _families():
  """matplotlib's own font, and those of East Asian writing that are installed."""
  return [
    "DejaVu Sans",
    *(name for name in EAST_ASIAN if name in set(matplotlib.font_manager.get_font_names())),
  ]


def class_titles(class_names, labels):
  """What the classes of these labels are called in a picture."""
  return [printable(class_names[label], otherwise=f"class {label}") for label in labels]


def printable(name, *, otherwise):
  """A name for a picture, at most LONGEST characters of it; `otherwise` where no font that is
  installed can write it.
  """
  fonts = [
    matplotlib.font_manager.get_font(matplotlib.font_manager.findfont(family))
    for family in _families()
  ]
  if not all(any(font.get_char_index(ord(character)) for font in fonts) for character in name):
    return otherwise
  name = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
  return name.replace("$", "\\$")  # no mathematics
