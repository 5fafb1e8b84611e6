"""One case: an operation, one of whose calls goes wrong, and everything that must hold afterwards."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from neve.store.check import verify_store
from tests.faults.operations import Holds, Operation
from tests.faults.seccomp import Kind
from tests.faults.supervised import NEEDS_ROOM, Call, Fault, Outcome, Way
from tests.faults.world import World, in_turn

SLACK_BYTES = 128 * 1024
"""What a store may take more than one for which all went well: pages of the index that are free now."""

_NUMBERS = re.compile(r"[0-9a-f]{8,}|[0-9]+")


class Sweep:
    """All cases of one operation."""

    def __init__(self, world: World, operation: Operation) -> None:
        self._world = world
        self._operation = operation
        self._begin = world.folder / "begin" / operation.name
        self._folder = world.folder / "case" / operation.name
        self._begin.mkdir(parents=True)
        # Where it will be: a store may know its place.
        self._place(self._begin)
        made = world.run(self._folder, in_turn(operation.prepare(world, self._folder)), watch=False)
        assert made.status == 0, made.errors
        shutil.rmtree(self._begin)
        self._folder.rename(self._begin)
        self._place(self._begin)
        self.whole = self._run(None)
        assert self.whole.status == 0, self.whole.errors
        self._check(done=True, output=self.whole.output)
        self._usual = self._listing()

    @property
    def calls(self) -> list[Call]:
        """Those of the operation, when all goes well."""
        return self.whole.calls

    def faults(self) -> Iterator[Fault]:
        """Every one there is."""
        for at, call in enumerate(self.calls):
            yield Fault(at, Way.DEATH)
            for way in (Way.ERROR, Way.BROKEN):
                yield Fault(at, way, errno.EIO)
            if call.kind in NEEDS_ROOM or call.kind is Kind.SYNC:
                yield Fault(at, Way.ERROR, errno.ENOSPC)
            if call.kind in NEEDS_ROOM:
                yield Fault(at, Way.FULL, errno.ENOSPC)
            if call.kind is Kind.WRITE and call.size > 1:
                yield Fault(at, Way.SHORT)
                yield Fault(at, Way.TORN)

    def check(self, fault: Fault) -> None:
        """Raises ``AssertionError`` if something does not hold that must."""
        self._place(self._begin)
        outcome = self._run(fault)
        try:
            self._check_outcome(fault, outcome)
            self._check(done=outcome.status == 0, output=outcome.output)
            again = self._run(None)
            refused = self._operation.once and "FAILED neve.errors.Conflict" in again.errors
            assert again.status == 0 or refused, f"again: {again.errors}"
            self._check(done=True, output=again.output)
            self._check_leftovers()
        except AssertionError as error:
            told = outcome.errors.strip()[-2000:]
            error.add_note(f"{self._operation.name}: {fault}, {outcome.struck}: {outcome.status}, {told!r}")
            raise

    def _place(self, begin: Path) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.parent.mkdir(exist_ok=True)
        shutil.copytree(begin, self._folder, symlinks=True)

    def _run(self, fault: Fault | None) -> Outcome:
        return self._world.run(self._folder, self._operation.action(self._world, self._folder), fault)

    def _check_outcome(self, fault: Fault, outcome: Outcome) -> None:
        """It has died, or has failed as it should, or has done everything all the same."""
        if outcome.struck is None:
            assert outcome.status == 0, "it has failed without any reason"
        elif fault.way in (Way.DEATH, Way.TORN):
            assert outcome.status == -9, "it has survived"
        elif outcome.status:
            self._check_failure(fault, outcome)

    def _check_failure(self, fault: Fault, outcome: Outcome) -> None:
        told = outcome.errors
        assert outcome.status == 1, "another exit code"
        assert "Traceback" not in told
        assert "internal error" not in told
        assert told.startswith("neve: ")
        assert str(self._folder) in told or "output" in told, "it names nothing"
        kinds = [line.partition(" ")[2] for line in told.splitlines() if line.startswith("FAILED ")]
        assert kinds or self._operation.name == "gc", "it does not say why"
        assert all(kind.startswith("neve.") for kind in kinds), kinds
        if fault.error == errno.ENOSPC:
            assert "disk full" in told, "it does not say that the disk is full"

    def _check(self, *, done: bool, output: str) -> None:
        """Whoever opens the stores now finds what must be there, and nothing wrong."""
        done_names = {}
        for name, holds in self._operation.stores.items():
            done_names[name] = self._expected(holds, output, done=done)

        def look() -> int:
            for name, (must, may) in done_names.items():
                if must or (self._folder / name / "store.json").exists():
                    self._look_into(name, must, may, whole=done or not self._operation.damaged)
            self._operation.check(self._world, self._folder, output, done)
            return 0

        looked = self._world.run(self._folder, look, watch=False)
        assert looked.status == 0, looked.errors

    def _expected(self, holds: Holds, output: str, *, done: bool) -> tuple[set[str], set[str]]:
        """The store paths that must be there, and those that may."""
        before, after = ({self._world.items[name].store_path for name in names} for names in holds)
        if done:
            return after, after
        printed = set(output.split("\n")[:-1]) if self._operation.prints_paths else set()
        assert printed <= after, printed
        return before & after | printed, before | after

    def _look_into(self, name: str, must: set[str], may: set[str], *, whole: bool) -> None:
        hashes = {item.store_path: item.nar_hash for item in self._world.items.values()}
        services = self._operation.opens(self._folder, name)
        try:
            there = {found.store_path.absolute for found in services.path_infos}
            assert must <= there <= may, f"{name}: {there}"
            if not whole:
                return
            report = verify_store(services, nar_hashes=True)
            assert not report.problems, f"{name}: {report.problems}"
            for found in services.path_infos:
                _, nar_hash = services.renderer.hash(found.node)
                assert nar_hash.hex() == hashes[found.store_path.absolute], f"{name}: {found}"
        finally:
            services.close()

    def _check_leftovers(self) -> None:
        """What has failed has left nothing that lasts, but for what is bounded."""
        names, size = self._listing()
        names = {name for name in names if not re.match(self._operation.may_leave, name)}
        usual, usual_size = self._usual
        strangers = sorted(
            name for name in names if _NUMBERS.sub("#", name) not in {_NUMBERS.sub("#", one) for one in usual}
        )
        assert not strangers, f"left: {strangers}"
        assert size <= usual_size + SLACK_BYTES, f"it takes {size} bytes, not {usual_size}"

    def _listing(self) -> tuple[set[str], int]:
        """All files, and how much is in them."""
        names: set[str] = set()
        size = 0
        for path, _, files in os.walk(self._folder):
            for file in files:
                there = os.path.join(path, file)
                name = os.path.relpath(there, self._folder)
                names.add(name)
                # What may stay is not part of the store.
                size += 0 if re.match(self._operation.may_leave, name) else os.lstat(there).st_size
        return names, size
