"""The family tree of artifacts as inline SVG: parents to the left, descendants to the right."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

BOX_WIDTH, BOX_HEIGHT, COLUMN, ROW, EDGE, TOP = 142, 50, 178, 68, 6, 30

People = Mapping[str, Mapping[str, Any]]


def draw_family(members: Sequence[Mapping[str, Any]], tones: Mapping[str, str]) -> str:
    """A box for each artifact, a line from each parent; colours by the name of its stage."""
    people = {member["id"]: member for member in members}
    places = arrange(people)
    pairs = [(parent, child) for child, member in people.items() for parent in member["parents"].values()]
    lines = "".join(descent(places[parent], places[child]) for parent, child in pairs)
    boxes = "".join(person(people[name], place, tones) for name, place in places.items())
    width = max(x for x, _ in places.values()) + BOX_WIDTH + EDGE
    height = max(y for _, y in places.values()) + BOX_HEIGHT + EDGE
    shape = f'viewBox="0 0 {width} {height}" style="min-width:{width * 0.8:.0f}px"'
    return f'<svg {shape} role="img" aria-label="family tree">{lines}{boxes}</svg>'


def arrange(people: People) -> dict[str, tuple[float, float]]:
    """Left upper corner of each box: a column right of its parents, sources just left of whom they feed."""
    columns: dict[str, int] = {}

    def column(name: str) -> int:
        if name not in columns:
            parents = people[name]["parents"].values()
            columns[name] = 1 + max(map(column, parents)) if parents else 0
        return columns[name]

    for name in people:
        column(name)
    for name, member in people.items():
        children = [columns[other] for other, child in people.items() if name in child["parents"].values()]
        if not member["parents"] and children:
            columns[name] = min(children) - 1
    rows: dict[int, int] = {}
    places = {}
    for name in sorted(people, key=lambda name: (columns[name], not people[name]["parents"], people[name]["kind"])):
        row = rows.get(columns[name], 0)
        rows[columns[name]] = row + 1
        places[name] = (float(EDGE + columns[name] * COLUMN), float(TOP + row * ROW))
    return places


def person(member: Mapping[str, Any], place: tuple[float, float], tones: Mapping[str, str]) -> str:
    x, y = place
    tone = tones.get(member.get("name", ""), "gray")
    hint = f"{member['kind']} {member['id']}, made by {member['made_by'] or 'a person'}"
    title = member.get("name") or member["kind"]
    return (
        f'<g class="person" style="--tone:var(--{tone})"><title>{escape(hint)}</title>'
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="9"/>'
        f'<text class="what" x="{x + 12}" y="{y + 21}">{escape(title)}</text>'
        f'<text class="by" x="{x + 12}" y="{y + 38}">{escape(member["made_by"] or member["id"])}</text></g>'
    )


def descent(parent: tuple[float, float], child: tuple[float, float]) -> str:
    """A curve from parent to child; over the top of what stands between them."""
    x0, y0, x1, y1 = parent[0] + BOX_WIDTH, parent[1] + BOX_HEIGHT / 2, child[0], child[1] + BOX_HEIGHT / 2
    near, far, over0, over1 = (x1 - x0) / 2, (x1 - x0) / 2, y0, y1
    if x1 - x0 > COLUMN:
        near, far, over0 = (x1 - x0) / 3, (x1 - x0) / 8, min(y0, y1) - 1.2 * BOX_HEIGHT
        over1 = over0
    return f'<path class="descent" d="M{x0} {y0}C{x0 + near} {over0} {x1 - far} {over1} {x1} {y1}"/>'
