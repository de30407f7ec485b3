"""Files of measurements: what is read, and the sentence for everything else."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import Invalid
from virtuary.base.loads import HOURS, Load
from virtuary.base.measurements import MAX_LINE, Measurements

HEAD = "server,timestamp,cpu,memory\n"
ROW = "web1,2026-11-23T09:00:00Z,0.5,2GiB\n"


def read(*contents: str | bytes) -> list[Load]:
    measurements = Measurements()
    for number, content in enumerate(contents):
        raw = content if isinstance(content, bytes) else content.encode()
        measurements.read(f"file{number}" if number else "loads.csv", io.BytesIO(raw))
    return measurements.loads()


def test_rows_become_loads_by_name() -> None:
    first, second = read(HEAD + ROW + "db,1763888400,1,1000\n" + ROW.replace("09:", "10:"))
    assert (first.name, second.name) == ("db", "web1")
    assert second.hours == {"cpu": [0.5] * HOURS, "memory": [2.0**31] * HOURS}


@pytest.mark.parametrize(
    "text",
    [
        "server;timestamp;cpu;memory\nweb1;2026-11-23T09:00Z;0.5;2GiB\n",
        "SERVER\ttimestamp\tCPU\tmemory\r\nweb1\t2026-11-23 09:00\t0.5\t2 GiB\r\n",
        "\ufeffmemory,cpu,timestamp,server\n\n2048MiB,.5,2026-11-23T10:00+01:00,\"web1\"\n",
        "sep=;\nserver;timestamp;cpu;memory\nweb1;23.11.2026 09:00;0,5;2,0GiB\n# by hand\n  \n",
        "server;timestamp;cpu;memory\nweb1;1795424400000;0,50;2.147.483.648\n",
        "server,timestamp,cpu,memory\nweb1,2026-11-23 09:00 UTC,0.5,2GiB\n".encode("utf-16"),
        json.dumps([{"server": "web1", "timestamp": "2026-11-23T09:00", "cpu": 0.5, "memory": "2GiB"}]),
        json.dumps({"measurements": [{"server": "web1", "timestamp": 1795424400, "cpu": 0.5, "memory": 2**31, "disk": None}]}),
        json.dumps({"servers": [{"name": "web1", "cpu": [0.5] * HOURS, "memory": "2GiB"}]}),
    ],
)  # fmt: skip
def test_every_spelling_of_the_same_measurement_is_the_same(text: str | bytes) -> None:
    assert [load.hours for load in read(text)] == [
        {"cpu": [0.5] * HOURS, "memory": [2.0**31] * HOURS}
    ]


def test_rates_may_have_units_and_cells_may_be_empty() -> None:
    text = "server,timestamp,cpu,disk,iops,network\nweb1,2026-11-23T09:00Z,1,12MiB/s,,80Mbit\nweb1,2026-11-23T10:00Z,,1,5,3\n"
    (load,) = read(text)
    assert load.hours["disk"][:10] == [12.0 * 2**20] * 10 and load.hours["network"][9] == 1e7
    assert (
        load.hours["iops"] == [5.0] * HOURS
        and load.hours["cpu"] == [1.0] * HOURS
        and "memory" not in load.hours
    )


def test_several_files_are_one() -> None:
    assert (
        len(
            read(
                HEAD + ROW,
                HEAD + ROW.replace("web1", "web2"),
                json.dumps({"servers": [{"name": "web3", "cpu": 1}]}),
            )
        )
        == 3
    )


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "loads.csv is empty"),
    "no columns": ("\n", "line 1: the column server and timestamp is missing"),
    "only a header": (HEAD, "no server was measured"),
    "an unknown column": ("server,timestamp,cpu,colour\n", "unknown columns: 'colour'"),
    "a column twice": ("server,timestamp,cpu,cpu\n", "each column is named once"),
    "nothing measured": ("server,timestamp\n", "one resource at least"),
    "too few fields": (HEAD + "web1,2026-11-23\n", "line 2: 2 fields, expected 4"),
    "too many fields": (HEAD + ROW + ROW.strip() + ",9\n", "line 3: 5 fields, expected 4"),
    "no number": (HEAD + ROW + "web1,2026-11-24,lots,1\n",
    "line 3: cpu is 'lots', expected the number of CPUs in use"),
    "negative": (HEAD + "web1,2026-11-24,-1,1\n", "line 2: cpu is -1, expected 0 to 1e\\+05"),
    "not a number at all": (HEAD + "web1,2026-11-24,nan,1\n", "line 2: cpu is 'nan'"),
    "infinite": (HEAD + "web1,2026-11-24,inf,1\n", "line 2: cpu is inf"),
    "huge": (HEAD + "web1,2026-11-24,1,1e300\n", "line 2: memory is 1e300"),
    "a huge size": (HEAD + "web1,2026-11-24,1,9999999TiB\n", "line 2: memory is '9999999TiB'"),
    "Python's own numbers": (HEAD + "web1,2026-11-24,1_0,1\n", "line 2: cpu is '1_0'"),
    "a decimal comma among commas": ('server,timestamp,cpu\nweb1,2026-11-24,"0,5"\n',
    "line 2: cpu is '0,5'"),
    "a share": (HEAD + "web1,2026-11-24,75%,1\n", "line 2: cpu is '75%'"),
    "no time": (HEAD + "web1,yesterday,1,1\n", "line 2: timestamp is 'yesterday'"),
    "a time before time": (HEAD + "web1,-5,1,1\n", "line 2: timestamp is '-5'"),
    "a time that never comes": (HEAD + "web1,1e300,1,1\n", "line 2: timestamp"),
    "no name": (HEAD + ",2026-11-24,1,1\n", "line 2: .* is not a server's name"),
    "a name that colours": (HEAD + "\x1b[31mweb,2026-11-24,1,1\n",
    "line 2: .* is not a server's name"),
    "measured twice": (HEAD + ROW + "web2,2026-11-23,1,1\n" + ROW,
    "line 4: web1 was measured at this time before \\(loads.csv, line 2\\)"),
    "another encoding": (HEAD.encode() + "wéb1,2026-11-24,1,1\n".encode("latin-1"),
    "line 2: not UTF-8"),
    "half of UTF-16": ((HEAD + ROW).encode("utf-16")[:-1], "begins like UTF-16 and is none"),
    "NUL": (HEAD + "web1\0,2026-11-24,1,1\n", "line 2: holds a NUL"),
    "an endless line": (b"x" * (MAX_LINE + 10), "line 1: longer than"),
    "an endless line later": (HEAD.encode() + b"x" * (MAX_LINE + 10), "line 2: longer than"),
    "an open quote": (HEAD + '"web1,2026-11-24,1,1\n', "not CSV"),
    "half a JSON": ('{"servers": [', "line 1: not JSON"),
    "a JSON of something else": ('{"vms": []}', "either servers or measurements"),
    "a JSON of a word": ("[3]", "entry 1: expected an object"),
    "JSON's NaN": ('{"servers": [{"name": "a", "cpu": NaN}]}', "NaN is not a number"),
    "a JSON field twice": ('{"servers": [{"name": "a", "cpu": 1, "cpu": 2}]}',
    "names a field twice"),
    "a JSON number nobody needs": ('{"servers": [{"name": "a", "cpu": 1' + "0" * 400 + "}]}",
    "entry 1: cpu is"),
    "a JSON number nobody can read": ('{"servers": [{"name": "a", "cpu": 1' + "0" * 9000 + "}]}",
    "not JSON that can be read"),
    "a deep JSON": ("[" * 100_000, "not JSON that can be read"),
    "an unknown JSON field": ('{"servers": [{"name": "a", "colour": 1}]}',
    "entry 1: unknown fields: 'colour'"),
    "a JSON server without a name": ('{"servers": [{"cpu": 1}]}', "entry 1: name is missing"),
    "a JSON week of 167 hours": (json.dumps({"servers": [{"name": "a", "cpu": [1] * 167}]}),
    "cpu has 167 values, expected 168"),
    "a JSON truth": ('{"servers": [{"name": "a", "cpu": true}]}', "entry 1: cpu is 'True'"),
    "an empty JSON value": ('{"servers": [{"name": "a", "cpu": ""}]}', "cpu has an empty value"),
    "a JSON server twice": ('{"servers": [{"name": "a", "cpu": 1}, {"name": "a", "cpu": 1}]}',
    "entry 2: the load of a was given before"),
    "latin JSON": ('{"servers": [{"name": "é"}]}'.encode("latin-1"), "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_with_its_place(case: str) -> None:
    content, words = REFUSED[case]
    with pytest.raises(Invalid, match=words) as caught:
        read(content)
    assert caught.value.sentence.isprintable() and len(caught.value.sentence) < 400


def test_a_server_is_measured_or_given_not_both() -> None:
    given_one = json.dumps({"servers": [{"name": "web1", "cpu": 1}]})
    with pytest.raises(Invalid, match="file1, entry 1"):
        read(HEAD + ROW, given_one)
    with pytest.raises(Invalid, match="file1, line 2"):
        read(given_one, HEAD + ROW)


@given(
    st.one_of(
        st.binary(max_size=200), st.binary(max_size=100).map(lambda rest: HEAD.encode() + rest)
    )
)
def test_no_bytes_meet_a_defect(content: bytes) -> None:
    try:
        read(content)
    except Invalid as error:
        assert error.sentence


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
    ),
    st.sampled_from(["name", "cpu", "memory", "server", "timestamp"]),
)
def test_no_json_value_meets_a_defect(value: Any, key: str) -> None:
    for entry in (
        {"servers": [{"name": "a", "cpu": 1, key: value}]},
        [{"server": "a", "timestamp": 5, "cpu": 1, key: value}],
        value,
    ):
        try:
            read(json.dumps(entry))
        except Invalid as error:
            assert error.sentence
