"""The pictures of a sweep: what is drawn is what was measured, and nothing lies upon it."""

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from cfg.data import sources
from cfg.metrics.metric import Metric
from cfg.report import curves, drawing, grids, page, table

FID = Metric("fid", "FID", "pool_3", "frechet", "lower", role="inception")
SCORE = Metric("inception_score", "IS", "logits", "score", "higher", role="inception")
METRICS = (FID, FID.heldout(), SCORE)
ROWS = [
  {
    "w": w,
    "fid": 9 - w,
    "fid_err": 0.1,
    "fid_heldout": 10 - w,
    "fid_heldout_err": 0.2,
    "inception_score": 2 + w,
    "inception_score_err": 0.3,
  }
  for w in (0.0, 1.0, 4.0)
]


@pytest.fixture
def drawn(monkeypatch):
  """The figures that were to be saved."""
  saved = []
  monkeypatch.setattr(drawing, "save", lambda figure, path: saved.append(figure))
  return saved


def points(axes):
  """{label: [N,2]} of the error bars of a plot."""
  return {bars.get_label(): bars.lines[0].get_xydata() for bars in axes.containers}


def test_a_curve_is_its_rows(drawn):
  """Each metric against w with its own points, the held-out one in the panel of its companion; FID
  against IS at the end; distances start at zero, real images are a line.
  """
  curves.write_curve(
    "curve.png",
    series={"": ROWS},
    panels=page.panels(METRICS, ROWS, several=False),
    trade=(SCORE, FID),
    real={"fid": 0.5, "inception_score": 8.0, "num_samples": 7},
    title="",
  )
  fid, score, trade = drawn[0].axes
  column = lambda name: [row[name] for row in ROWS]
  expected = {"to the training split": "fid", "to the held-out split": "fid_heldout"}
  for label, name in expected.items():
    np.testing.assert_array_equal(points(fid)[label], np.stack([column("w"), column(name)], 1))
  assert points(fid).keys() == expected.keys()
  assert fid.get_ylim()[0] == 0 and "lower is better" in fid.get_ylabel()
  assert 0.5 in [line.get_ydata()[0] for line in fid.lines]
  np.testing.assert_array_equal(
    points(score)["samples"], np.stack([column("w"), column("inception_score")], 1)
  )
  (line,) = points(trade).values()
  np.testing.assert_array_equal(line, np.stack([column("inception_score"), column("fid")], 1))


def test_several_variants_are_a_line_each(drawn):
  """Two samplers: a line each in every panel, and no held-out distances between them."""
  series = {"a": ROWS, "b": [{**row, "fid": 2 * row["fid"]} for row in ROWS]}
  panels = page.panels(METRICS, ROWS, several=True)
  curves.write_curve("curve.png", series=series, panels=panels, trade=None, real=None, title="")
  fid, score = drawn[0].axes
  assert points(fid).keys() == points(score).keys() == {"a", "b"}
  np.testing.assert_array_equal(points(fid)["b"][:, 1], 2 * points(fid)["a"][:, 1])


def sampler_rows(*, name, spacing, num_steps):
  """Two strengths of a sampler; FID is 100 w + T."""
  about = {"sampler.name": name, "sampler.spacing": spacing, "sampler.num_steps": num_steps}
  guided = {0.0: num_steps, 1.0: 2 * num_steps}
  return [
    {"w": w, "nfe": nfe, "fid": 100 * w + num_steps, "fid_err": 0.1, **about}
    for w, nfe in guided.items()
  ]


def content_of(rows):
  """Of a sweep of these rows."""
  about = {"main/data": "digits", "sweep.num_samples": 500}
  return {"rows": rows, "metrics": table.to_json([FID]), "about": about, "references": []}


def test_steps_are_a_line_each_sampler(drawn):
  """FID against the evaluations, a panel each w: a sampler's colour is the same on all grids of
  levels, a grid's dashes are the same for all samplers. Of two T there is no figure.
  """
  lines = [("ddim", "u"), ("ddim", "edm"), ("heun", "u")]
  rows = [
    row
    for name, spacing in lines
    for num_steps in (16, 4, 8)
    for row in sampler_rows(name=name, spacing=spacing, num_steps=num_steps)
  ]
  page.write_steps("steps.png", content_of(rows))
  plain, guided = drawn[0].axes
  assert (plain.get_title(), guided.get_title()) == ("w = 0", "w = 1")
  names = [f"{name}, levels in {spacing}" for name, spacing in lines]
  assert list(points(guided)) == names
  for name in names:
    np.testing.assert_array_equal(points(plain)[name], [[4, 4], [8, 8], [16, 16]])
    np.testing.assert_array_equal(points(guided)[name], [[8, 104], [16, 108], [32, 116]])
  first, edm, heun = (bars.lines[0] for bars in guided.containers)
  assert first.get_color() == edm.get_color() != heun.get_color()
  assert first.get_linestyle() == heun.get_linestyle() != edm.get_linestyle()
  page.write_steps("steps.png", content_of([r for r in rows if r["sampler.num_steps"] > 4]))
  assert len(drawn) == 1


def test_many_lines_have_one_legend(drawn):
  """Below all panels, and none of them looks like another."""
  rows = [
    row
    for num_steps in range(2, 14)
    for row in sampler_rows(name="ddim", spacing="u", num_steps=num_steps)
  ]
  page.write_curve("curve.png", content_of(rows[:12]))
  page.write_curve("curve.png", content_of(rows))
  few, many = drawn
  assert few.axes[0].get_legend() is not None and not few.legends
  assert many.axes[0].get_legend() is None
  (legend,) = many.legends
  assert len(legend.get_texts()) == 12
  lines = [bars.lines[0] for bars in many.axes[0].containers]
  assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12


def test_a_curve_has_no_more_lines_than_can_be_told_apart(drawn, monkeypatch):
  """Of many variants those with the first T."""
  rows = [
    row
    for num_steps in (16, 8)
    for spacing in ("u", "edm")
    for row in sampler_rows(name="ddim", spacing=spacing, num_steps=num_steps)
  ]
  page.write_curve("curve.png", content_of(rows))
  monkeypatch.setattr(page, "MOST_LINES", 3)
  page.write_curve("curve.png", content_of(rows))
  every, few = (points(figure.axes[0]) for figure in drawn)
  assert len(every) == 4 and set(few) == {label for label in every if "T = 16" in label}
  assert len(few) == 2


def test_a_metric_that_is_not_everywhere_is_no_line():
  """A distance to held-out images that are too few, None, is left out of its panel."""
  rows = [{**row, "fid_heldout": None} for row in ROWS]
  panel, _ = page.panels(METRICS, rows, several=False)
  assert list(panel.lines) == [FID]


def test_a_grid_shows_each_picture_in_its_place(drawn):
  """Row by row, column by column, a gap between them: pixels are the pictures'."""
  pictures = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * 40
  pictures = np.broadcast_to(pictures, (2, 3, 4, 4, 1))
  grids.write_grid(
    "grid.png", pictures, row_names="ab", column_names="123", row_title="", column_title=""
  )
  (shown,) = drawn[0].axes[0].images
  sheet = np.asarray(shown.get_array()).reshape(9, 14)
  for row in range(2):
    for column in range(3):
      part = sheet[5 * row : 5 * row + 4, 5 * column : 5 * column + 4]
      np.testing.assert_array_equal(part, pictures[row, column, ..., 0])


def test_a_figure_is_a_png(tmp_path):
  """What is saved is a picture of the figure's size."""
  drawing.save(matplotlib.figure.Figure(figsize=(2, 1), dpi=50), tmp_path / "a.png")
  with Image.open(tmp_path / "a.png") as image:
    assert image.format == "PNG"
  assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_nearest_training_images():
  """A training image is its own nearest, at distance 0; distances are RMS in [-1, 1] and ascend."""
  images = np.random.default_rng(0).integers(0, 256, (250, 8, 8, 1), np.uint8)
  source = sources.ArraySource(images, np.zeros(250, np.int32))
  query = images[[5, 200]].copy()
  query[1, 0, 0, 0] ^= 255
  distance, nearest = grids.nearest_training(query, source, count=3, batch_size=100)
  np.testing.assert_array_equal(nearest[0, 0], query[0])
  np.testing.assert_array_equal(nearest[1, 0], images[200])
  assert distance[0, 0] == pytest.approx(0, abs=1e-6)
  assert np.all(np.diff(distance, axis=1) >= 0)
  exact = np.sqrt(np.mean((query[1].astype(float) - images[200]) ** 2)) / 127.5
  assert distance[1, 0] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
  "heights", [(0, 1, 2, 3), (3, 2, 1, 0), (2.9, 2.95, 2.95, 3), (0.1, 0.05, 0, 0.1)]
)
def test_a_legend_lies_on_no_point(heights):
  """Whether a curve rises, falls, or stays high or low, the legend is where no point of it is."""
  axes = matplotlib.figure.Figure(dpi=120).subplots()
  axes.errorbar(range(4), heights, 0.01, label="samples")
  axes.axhline(1.5, label="real held-out images, N=2050")
  axes.set_ylim(bottom=0)
  drawing.place_legend(axes)
  axes.figure.draw_without_rendering()
  box = axes.get_legend().get_window_extent()
  along = np.linspace(0, 3, 100)
  curve = np.stack([along, np.interp(along, range(4), heights)], 1)
  level = np.stack([along, np.full(100, 1.5)], 1)
  for place in axes.transData.transform(np.concatenate([curve, level])):
    assert not box.contains(*place)


def test_labels_of_strengths_do_not_lie_upon_each_other():
  """Where points crowd only the first is labelled; where there is room all are."""
  axes = matplotlib.figure.Figure(dpi=120).subplots()
  across = [0, 0.01, 0.02, 1, 2]
  up = [3, 2.99, 2.98, 2, 1]
  axes.plot(across, up)
  curves.label_strengths(axes, [{"w": w} for w in (0, 0.1, 0.2, 1, 2)], across, up)
  axes.figure.draw_without_rendering()
  assert [text.get_text() for text in axes.texts] == ["w=0", "w=1", "w=2"]
