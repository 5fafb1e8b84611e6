from __future__ import annotations

from neve.fs.caches import Cache


def test_the_least_recently_used_goes_first() -> None:
    cache: Cache[str, int] = Cache(10)
    for name in "abc":
        cache.put(name, ord(name), 3)
    assert cache.get("a") == ord("a")
    cache.put("d", 4, 3)
    assert [name for name in "abcd" if name in cache] == ["a", "c", "d"]
    assert cache.get("b") is None
    cache.put("e", 5, 7)
    assert [name for name in "abcde" if name in cache] == ["d", "e"]


def test_one_is_kept_whatever_it_weighs() -> None:
    cache: Cache[str, int] = Cache(10)
    cache.put("a", 1, 3)
    cache.put("b", 2, 1000)
    assert (cache.get("a"), cache.get("b")) == (None, 2)
    cache.put("c", 3, 1)
    assert (cache.get("b"), cache.get("c")) == (None, 3)


def test_replacing_and_discarding() -> None:
    cache: Cache[str, int] = Cache(10)
    for _ in range(20):
        cache.put("a", 1, 9)
    cache.put("b", 2, 1)
    assert (cache.get("a"), cache.get("b")) == (1, 2)
    cache.discard("a")
    cache.discard("a")
    cache.put("c", 3, 9)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (None, 2, 3)
