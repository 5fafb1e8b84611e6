"""What many ask for at the same time is done once."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

from neve.errors import NeveError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """Runs functions, of those for one key one at a time: who comes meanwhile gets its result, or its
    error. Nothing is remembered beyond that. Thread-safe."""

    def __init__(self) -> None:
        self._flights: dict[K, Future[T]] = {}
        self._lock = threading.Lock()

    def run(self, key: K, function: Callable[[], T]) -> T:
        """The result of ``function``, which is called here or was called by another thread."""
        while True:
            flight, leads = self._board(key)
            try:
                return self._lead(key, flight, function) if leads else flight.result()
            except NeveError as error:
                if leads:
                    raise
                # One of its own for each thread: raising adds to the traceback.
                raise copy.copy(error) from error
            except CancelledError:
                # Whoever did it was interrupted, which is no answer for those who waited.
                if leads:
                    raise
            finally:
                # It may hold an error whose traceback holds this frame.
                del flight

    def _board(self, key: K) -> tuple[Future[T], bool]:
        """The flight for ``key``, and whether it is the caller's to do."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            self._flights[key] = flight = Future()
            return flight, True

    def _lead(self, key: K, flight: Future[T], function: Callable[[], T]) -> T:
        try:
            result = function()
            self._end(key)
            flight.set_result(result)
            return result
        except NeveError as error:
            self._end(key)
            flight.set_exception(error)
            raise
        except BaseException:
            self._end(key)
            flight.cancel()
            raise
        finally:
            del flight

    def _end(self, key: K) -> None:
        with self._lock:
            self._flights.pop(key, None)
