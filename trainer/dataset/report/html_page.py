"""The report as an HTML page with images, saved in the dataset folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment

from ...core.counting import plural
from ...core.files.writing import write_atomic
from ..manifest.items import Dataset
from .summary import HOW_TO_LEAVE_OUT, Report

PAGE = "report.html"
MAX_PICTURES = 1000  # a browser shows that many at once without trouble
MAX_ROWS = 2000
MAX_PAIRS = 300
MAX_TAGS = 200
SHOWN = 24  # rows of a table; the others unfold

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.name }}</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { margin-bottom: 0; }
  h2 { margin-top: 2.5rem; }
  table { border-collapse: collapse; }
  td, th { text-align: left; padding: .2rem 1rem .2rem 0; vertical-align: top; border-bottom: 1px solid #8884; }
  td.n { text-align: right; font-variant-numeric: tabular-nums; }
  .facts { color: #888; }
  .warnings { border-left: .3rem solid #d80; padding: .1rem 1rem; background: #d801; }
  .columns { display: flex; flex-wrap: wrap; gap: 1rem 4rem; }
  .pairs img { max-width: 16rem; max-height: 16rem; height: auto; border-radius: .3rem; }
  .sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem; }
  figure { margin: 0; }
  figure img { width: 100%; height: auto; border-radius: .3rem; background: #8882; }
  figcaption { font-size: .85rem; overflow-wrap: anywhere; }
  details { max-width: 40rem; }
  summary { cursor: pointer; color: #888; margin-top: .3rem; }
  figcaption small { color: #888; display: block; }
</style>
</head>
<body>
<h1>{{ report.name }}</h1>
<p class="facts">{{ images }} kept, {{ report.rejected|length }} left out{% for fact in report.facts() %}, {{ fact }}{% endfor %}
{%- if report.regularisation %}, {{ report.regularisation }} for regularisation{% endif %}
{%- if report.masks %}, {{ report.masks }} with a mask{% endif %}.
Trigger word: {{ report.trigger or "none" }}. Class: {{ report.class_description or "none" }}. Resolution {{ report.resolution }}.<br>
Hash <code>{{ report.hash }}</code></p>
{% if report.warnings %}<div class="warnings"><ul>
{% for warning in report.warnings %}<li>{{ warning }}</li>
{% endfor %}</ul></div>{% endif %}
<div class="columns">
{% for title, counts in tables %}{% if counts %}<section><h2>{{ title }}</h2><table>
{% for name, count in counts[:shown] %}<tr><td>{{ name }}</td><td class="n">{{ count }}</td></tr>
{% endfor %}</table>{% if counts|length > shown %}<details><summary>{{ counts|length - shown }} more</summary>
<p>{% for name, count in counts[shown:most] %}{{ name }} ({{ count }}){{ ", " if not loop.last }}{% endfor %}
{%- if counts|length > most %}, … and {{ counts|length - most }} more{% endif %}</p></details>{% endif %}</section>{% endif %}{% endfor %}
</div>
{% if report.doubtful %}<h2>Similar images that were kept</h2><p>{{ how_to_leave_out }}</p><table class="pairs">
{% for doubt in report.doubtful[:pairs] %}<tr>{% for n in (0, 1) %}<td><a href="{{ doubt.files[n]|urlencode }}">
<img loading="lazy" src="{{ doubt.files[n]|urlencode }}" alt=""></a><br>{{ doubt.sources[n] }}</td>{% endfor %}<td>{{ doubt.why }}</td></tr>
{% endfor %}</table>
{% if report.doubtful|length > pairs %}<p>… and {{ report.doubtful|length - pairs }} more pairs.</p>{% endif %}{% endif %}
{% if report.rejected %}<h2>Left out</h2><table><tr><th>File</th><th>Reason</th><th></th></tr>
{% for row in report.rejected[:rows] %}<tr><td>{{ row.source }}</td><td>{{ row.reason }}</td><td>{{ row.message }}</td></tr>
{% endfor %}</table>
{% if report.rejected|length > rows %}<p>… and {{ report.rejected|length - rows }} more in manifest.json.</p>{% endif %}{% endif %}
<h2>Images</h2>
<div class="sheet">
{% for picture in pictures %}<figure><a href="{{ picture.url }}"><img loading="lazy" src="{{ picture.url }}" alt=""
 width="{{ picture.width }}" height="{{ picture.height }}"></a>
<figcaption>{{ picture.caption }}<small>{{ picture.source }}</small><small>{{ picture.facts }}</small></figcaption></figure>
{% endfor %}</div>
{% if report.kept > pictures|length %}<p>… and {{ report.kept - pictures|length }} more.</p>{% endif %}
</body>
</html>
"""


def write_page(folder: Path, dataset: Dataset, report: Report, sources: Sequence[str]) -> Path:
    """Write ``report.html``; ``sources``: the names of the items' sources. Everything that came from file names and captions is escaped."""
    pictures = [
        {
            "url": quote(item.file),
            "caption": item.caption,
            "source": source,
            "width": item.width,
            "height": item.height,
            "facts": f"{item.original_size[0]}x{item.original_size[1]} to {item.width}x{item.height}"
            + (f", {item.repeats} repeats" if item.repeats > 1 else "")
            + (", regularisation" if item.is_regularisation else ""),
        }
        for item, source in zip(dataset.items[:MAX_PICTURES], sources, strict=False)
    ]
    tables = [
        ("Sizes", list(report.buckets.items())),
        ("Source sizes", list(report.source_sizes.items())),
        ("Formats", list(report.formats.items())),
        ("Captions from", list(report.captions_from.items())),
        ("Tags", list(report.tags.items())),
    ]
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    text = template.render(
        report=report, tables=tables, pictures=pictures, rows=MAX_ROWS, shown=SHOWN, most=MAX_TAGS, images=plural(report.kept, "image"),
        pairs=MAX_PAIRS, how_to_leave_out=HOW_TO_LEAVE_OUT,
    )  # fmt: skip
    path = folder / PAGE
    write_atomic(path, text)
    return path
