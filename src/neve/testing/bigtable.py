"""A Bigtable emulator for tests, and raw access to its tables."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

_PLACES = (
    "/usr/lib/google-cloud-sdk/platform/bigtable-emulator",
    str(Path.home() / "go/bin"),
    "/usr/local/bin",
)
_NAMES = ("cbtemulator", "emulator")
"""What Google's packages call it, and what it is called when Go installs it."""

_MAX_MESSAGE_BYTES = 256 * 1024 * 1024

PROJECT, INSTANCE = "test-project", "test-instance"


def emulator_program() -> str | None:
    """Where the emulator is, if it is installed."""
    if found := shutil.which(_NAMES[0]):
        return found
    places = [Path(place, name) for place in _PLACES for name in _NAMES]
    return next((str(place) for place in places if os.access(place, os.X_OK)), None)


class Emulator:
    """A running emulator. It holds everything in its memory, and begins with no table."""

    def __init__(self, port: int = 0) -> None:
        program = emulator_program()
        assert program is not None
        self._process = subprocess.Popen(
            [program, "-host", "127.0.0.1", "-port", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if " running on " not in line:
            self.kill()
            raise RuntimeError(f"the emulator does not start: {line!r}")
        self.host = line.split()[-1]
        options = [
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ]
        self._channel = grpc.insecure_channel(self.host, options)

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    def create_table(self, name: str, *families: str) -> str:
        """Makes a table; returns its address, with the first of the families."""
        from google.cloud.bigtable_admin_v2.types import bigtable_table_admin as admin
        from google.cloud.bigtable_admin_v2.types import table

        request = admin.CreateTableRequest(
            parent=f"projects/{PROJECT}/instances/{INSTANCE}",
            table_id=name,
            table=table.Table(column_families={family: table.ColumnFamily() for family in families}),
        )
        self._call("google.bigtable.admin.v2.BigtableTableAdmin/CreateTable", request, table.Table)
        return f"bigtable://{INSTANCE}?project_id={PROJECT}&table_name={name}&family_name={families[0]}"

    def write(
        self, table: str, family: str, key: bytes, cells: Mapping[bytes, bytes], micros: int = -1
    ) -> None:
        """Puts a row as somebody else might: a cell for each column."""
        from google.cloud.bigtable_v2.types import bigtable, data

        request = bigtable.MutateRowRequest(
            table_name=f"projects/{PROJECT}/instances/{INSTANCE}/tables/{table}",
            row_key=key,
            mutations=[
                data.Mutation(
                    set_cell=data.Mutation.SetCell(
                        family_name=family, column_qualifier=column, value=value, timestamp_micros=micros
                    )
                )
                for column, value in cells.items()
            ],
        )
        self._call("google.bigtable.v2.Bigtable/MutateRow", request, bigtable.MutateRowResponse)

    def rows(self, table: str) -> dict[bytes, list[tuple[str, bytes, bytes, int]]]:
        """All there is in a table: family, qualifier, value and time of each cell by row."""
        from google.cloud.bigtable_v2.types import bigtable

        request = bigtable.ReadRowsRequest(
            table_name=f"projects/{PROJECT}/instances/{INSTANCE}/tables/{table}"
        )
        call = self._channel.unary_stream(
            "/google.bigtable.v2.Bigtable/ReadRows",
            request_serializer=bigtable.ReadRowsRequest.serialize,
            response_deserializer=bigtable.ReadRowsResponse.deserialize,
        )
        found: dict[bytes, list[tuple[str, bytes, bytes, int]]] = {}
        key, family, column = b"", "", b""
        for answer in call(request):
            for chunk in answer.chunks:
                key = chunk.row_key or key
                family = chunk.family_name if chunk.family_name is not None else family
                column = chunk.qualifier if chunk.qualifier is not None else column
                found.setdefault(key, []).append((family, column, chunk.value, chunk.timestamp_micros))
        return found

    def age(self, table: str, seconds: float) -> None:
        """Makes all that is in a table so much older. Nobody may write there meanwhile."""
        from google.cloud.bigtable_v2.types import bigtable, data

        for key, cells in self.rows(table).items():
            mutations = [data.Mutation(delete_from_row=data.Mutation.DeleteFromRow())]
            for family, column, value, micros in cells:
                then = micros - int(seconds * 1000) * 1000
                cell = data.Mutation.SetCell(
                    family_name=family, column_qualifier=column, value=value, timestamp_micros=then
                )
                mutations.append(data.Mutation(set_cell=cell))
            request = bigtable.MutateRowRequest(
                table_name=f"projects/{PROJECT}/instances/{INSTANCE}/tables/{table}",
                row_key=key,
                mutations=mutations,
            )
            self._call("google.bigtable.v2.Bigtable/MutateRow", request, bigtable.MutateRowResponse)

    def _call(self, method: str, request: Any, answer: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{method}",
            request_serializer=type(request).serialize,
            response_deserializer=answer.deserialize,
        )
        return call(request, wait_for_ready=True, timeout=60)

    def pause(self) -> None:
        """Lets it hang: it takes what is sent, and says nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it at once; what it held is gone. Can be called again."""
        if hasattr(self, "_channel"):
            self._channel.close()
        self._process.kill()
        self._process.communicate()
