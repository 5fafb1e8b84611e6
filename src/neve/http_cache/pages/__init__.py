"""The pages for people: the start page, search, store paths down to single files.

Plain HTML and one style sheet: no JavaScript, nothing from other hosts. What a store path contains (names,
targets of symlinks, files) was written by strangers; see ``render.py`` and ``raw.py`` for what keeps
it from scripting the pages.

routes.py     the routes, from request to page
render.py     templates, security headers, pages for errors
locations.py  from addresses to bytes and back: every link is made there
lookup.py     what the store knows of a path: node, references, referrers
referrers.py  long lists of referrers, kept for a while
contents.py   what is at a place of a store path: a listing, a preview, a target
scan.py       going through many store paths, a bounded part for each request
search.py     what a search asks for, and what it finds
summary.py    the numbers of the start page
raw.py        files themselves, sandboxed
text.py       names, sizes and contents, made showable
threads.py    threads for looking into the store, few at a time
"""

from neve.http_cache.pages.routes import page_routes

__all__ = ["page_routes"]
