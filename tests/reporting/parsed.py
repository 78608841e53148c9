"""A page as a test reads it."""

import html.parser

VOID = ("br", "img", "input", "meta")


class Parsed(html.parser.HTMLParser):
    """The page's tags, ids, links, tables and what charts say; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.open = [], [], [], []
        self.labels, self.titles, self.systems = (
            [],
            [],
            [],
        )  # of charts, of marks, of rows and marks
        self.script, self._tables, self._texts = "", [], []
        self.feed(text)
        assert self.open == []

    def table(self, caption):
        """The rows of the one table whose caption begins so, its cells as text."""
        [rows] = [rows for said, rows in self._tables if " ".join(said.split()).startswith(caption)]
        return [[" ".join(cell.split()) for cell in row] for row in rows]

    def texts(self, name):
        """The texts of the elements of a class."""
        return [text for which, text in self._texts if which == name]

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.links += [found[key] for key in ("src", "href") if key in found]
        self.ids += [found["id"]] if "id" in found else []
        self.systems += [found["data-system"]] if "data-system" in found else []
        self.labels += [found["aria-label"]] if found.get("role") == "img" else []
        if tag not in VOID:
            self.open.append((tag, found.get("class", "")))
        if tag == "table":
            self._tables.append(["", []])
        elif tag == "tr":
            self._tables[-1][1].append([])
        elif tag in ("th", "td"):
            self._tables[-1][1][-1].append("")
        elif tag == "title":
            self.titles.append("")
        if found.get("class"):
            self._texts.append([found["class"], ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        if "script" in inside:
            self.script += data
        elif "caption" in inside:
            self._tables[-1][0] += data
        elif ("td" in inside or "th" in inside) and "small" not in inside:
            self._tables[-1][1][-1][-1] += data
        elif "title" in inside:
            self.titles[-1] += data
        for _, name in self.open:
            if name:
                next(text for text in reversed(self._texts) if text[0] == name)[1] += data
