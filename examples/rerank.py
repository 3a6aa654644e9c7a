"""Which of some texts answers a query best? ``python rerank.py [MODEL]``, with a model that was made for ranking.

Without one the embedded model judges: the text behind which the query is most probable comes first.
"""

import sys

import lloyal

QUERY = "def read_lines(path):"
TEXTS = [
    "import math\n\ndef area(radius):\n    return math.pi * radius ** 2\n\n",
    "import os\n\ndef write_lines(path, lines):\n    with open(path, 'w') as file:\n        file.writelines(lines)\n\n",
    "class Colour:\n    red = 1\n    green = 2\n\n",
]

if len(sys.argv) > 1:
    with lloyal.Model(sys.argv[1]) as model:
        scores = lloyal.rerank(model, QUERY, TEXTS)
else:
    ctx = lloyal.Context(lloyal.Model(lloyal.models.path()), n_threads=1)
    scores = [lloyal.score(ctx, QUERY, prompt=text).total for text in TEXTS]
for score, text in sorted(zip(scores, TEXTS, strict=True), reverse=True):
    print(f"{score:8.2f}  {text.strip()!r}")
