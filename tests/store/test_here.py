"""What only one host has of a document is that host's alone, and read together with what is true
everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hosts import Through
from virtuary.base.errors import Bug, Conflict
from virtuary.base.units import GIB
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageStatus
from virtuary.model.meta import Document, Meta, utcnow
from virtuary.model.network import Network, NetworkSpec, NetworkStatus
from virtuary.model.template import Template, TemplateSpec, TemplateStatus
from virtuary.model.upgrade import BOOT, SET_APART
from virtuary.store import documents, here
from virtuary.store.api import Store
from virtuary.store.memory import MemoryStore

IMAGE = Image(
    meta=Meta(id="i", name="tiny"),
    spec=ImageSpec(source=ImageSource(kind="build", recipe="tiny")),
    status=ImageStatus(state="ready", virtual_size=GIB, size=5, agent=True, made=utcnow()),
)
NETWORK = Network(
    meta=Meta(id="n", name="lan"),
    spec=NetworkSpec(ipv4="10.1.0.0/24", ipv6="fd00:1::/64"),
    status=NetworkStatus(state="ready", bridge="vb1", pid=7, external=(("eth0", "192.0.2.1"),)),
)
TEMPLATE = Template(
    meta=Meta(id="t", name="tiny"),
    spec=TemplateSpec(image="tiny", image_id="i", memory=GIB, accel="tcg", firmware="bios"),
    status=TemplateStatus(state="ready", key="abc", size=9),
)
ALL: tuple[Any, ...] = (IMAGE, NETWORK, TEMPLATE)
FORMAT_3 = {kind.prefix: kind.local for kind in (Image, Network, Template)}


@pytest.fixture
def hosts() -> Iterator[tuple[Store, Store]]:
    """One store, looked at from the hosts a and b."""
    store = MemoryStore()
    views = Through(store), Through(store)
    for view, host in zip(views, "ab", strict=True):
        documents.look_from(view, host)
    yield views


def bodies(store: Store) -> dict[str, Any]:
    return {record.key: json.loads(record.value) for record in store.list("").records}


def at(store: Store, document: Document) -> Any:
    return documents.get(store, type(document), document.id)


@pytest.mark.parametrize("document", ALL, ids=lambda item: item.prefix)
async def test_each_host_sees_what_is_true_everywhere_and_its_own(
    hosts: tuple[Store, Store], document: Any
) -> None:
    a, b = hosts
    await a.txn({}, documents.written(a, document))
    seen, elsewhere = at(a, document), at(b, document)
    assert seen == document.but(meta=document.meta.but(revision=seen.meta.revision))
    assert documents.is_here(a, seen) and not documents.is_here(b, elsewhere)
    nothing = type(document.status)()
    for name in type(nothing).model_fields:
        source = nothing if name in document.local else document.status
        assert getattr(elsewhere.status, name) == getattr(source, name)
    assert set(bodies(a)) == {document.key, here.key_of("a", document.key)}
    assert not set(bodies(a)[document.key]["status"]) & set(document.local)
    await b.txn({}, documents.written(b, elsewhere.seen(state="failed")))
    assert at(a, document) == seen and at(b, document).status.state == "failed"
    assert documents.here(a, type(document)) == [seen] == documents.every(a, type(document))


async def test_a_part_that_did_not_change_is_not_written(hosts: tuple[Store, Store]) -> None:
    a, _ = hosts
    await a.txn({}, documents.written(a, NETWORK))
    before = at(a, NETWORK)
    assert documents.written(a, before) == {}
    own = here.key_of("a", NETWORK.key)
    after = await documents.change(a, Network, NETWORK.key, lambda now: now.seen(gaps=("none",)))
    assert after and after.meta.revision == before.meta.revision < a.revision
    assert at(a, NETWORK) == after and list(documents.written(a, before)) == [own]
    labelled = before.but(meta=before.meta.but(labels={"a": "b"}))
    assert list(documents.wished(a, labelled)) == [NETWORK.key]
    await a.txn({}, documents.wished(a, labelled))
    now = at(a, NETWORK)
    assert now.status.gaps == ("none",) and now.meta.labels == {"a": "b"}
    assert now.meta.revision == a.revision


async def test_a_change_is_made_over_a_change_of_either_part(hosts: tuple[Store, Store]) -> None:
    a, b = hosts
    await a.txn({}, documents.written(a, IMAGE))
    tries: list[str] = []

    class Slow(Through):
        """Others are quicker, twice."""

        async def txn(self, *args: Any) -> int:
            tries.append("x")
            if len(tries) == 1:
                await documents.change(b, Image, IMAGE.key, lambda now: now.seen(os="Debian"))
            elif len(tries) == 2:
                await documents.change(a, Image, IMAGE.key, lambda now: now.seen(size=6))
            return await super().txn(*args)

    slow = Slow(a)
    documents.look_from(slow, "a")
    await documents.change(slow, Image, IMAGE.key, lambda now: now.seen(reason="so"))
    status = at(a, IMAGE).status
    assert (status.os, status.size, status.reason, len(tries)) == ("Debian", 6, "so", 3)


async def test_what_is_not_known_stays_in_its_part(hosts: tuple[Store, Store]) -> None:
    a, b = hosts
    await a.txn({}, documents.written(a, IMAGE))
    found, own = bodies(a), here.key_of("a", IMAGE.key)
    found[IMAGE.key]["status"]["codename"] = "trixie"
    found[own]["heat"] = 7
    await a.txn({}, {key: json.dumps(body).encode() for key, body in found.items()})
    await documents.change(a, Image, IMAGE.key, lambda now: now.seen(size=6, os="Debian"))
    after = bodies(a)
    assert after[own]["heat"] == 7 and "heat" not in after[IMAGE.key]["status"]
    assert after[IMAGE.key]["status"]["codename"] == "trixie" and "codename" not in after[own]
    assert at(b, IMAGE).body()["status"]["codename"] == "trixie"


async def test_the_last_host_that_has_it_removes_a_document(hosts: tuple[Store, Store]) -> None:
    a, b = hosts
    await a.txn({}, {**documents.written(a, IMAGE), IMAGE.named: IMAGE.id.encode()})
    await b.txn({}, documents.written(b, at(b, IMAGE)))
    first, second = documents.removed(a, at(a, IMAGE)), documents.removed(b, at(b, IMAGE))
    await a.txn(first[0], {}, first[1])
    assert at(b, IMAGE) and not documents.is_here(a, at(a, IMAGE))
    with pytest.raises(Conflict):
        await b.txn(second[0], {}, second[1])
    last = documents.removed(b, at(b, IMAGE))
    await b.txn(last[0], {}, last[1])
    assert bodies(a) == {}


async def test_a_change_of_a_part_is_one_of_the_document_on_its_own_host_alone(
    hosts: tuple[Store, Store],
) -> None:
    a, b = hosts
    own = here.key_of("a", IMAGE.key)
    assert documents.home(a, own) == IMAGE.key and documents.home(b, own) == ""
    assert documents.home(b, IMAGE.key) == IMAGE.key


async def test_a_page_shows_both_parts_together(hosts: tuple[Store, Store]) -> None:
    a, b = hosts
    await a.txn({}, documents.written(a, IMAGE))
    (record,) = documents.page(a, Image, limit=9).records
    assert record.value == at(a, IMAGE).dump() and b'"ready"' in record.value
    (record,) = documents.page(b, Image, limit=9).records
    assert b'"absent"' in record.value


async def test_an_older_store_becomes_that_of_its_only_host() -> None:
    assert SET_APART == FORMAT_3, "what moves once more needs a format of its own"
    store = MemoryStore()
    await store.txn({}, {**{item.key: item.dump() for item in ALL}, BOOT: b"boot"})
    documents.look_from(store, "a")
    await documents.bring_over(store)
    for item in ALL:
        found = at(store, item)
        assert found == item.but(meta=item.meta.but(revision=found.meta.revision))
        assert documents.is_here(store, found) and documents.written(store, found) == {}
    record = store.get(here.key_of("a", "boot"))
    assert record and record.value == b"boot" and store.get(BOOT) is None
    other = Through(store)
    documents.look_from(other, "b")
    assert {at(other, item).status.state for item in ALL} == {"absent", "creating"}
    before = store.revision
    await documents.bring_over(store)
    assert store.revision == before


def test_a_store_is_looked_at_from_one_host() -> None:
    store = MemoryStore()
    for _ in range(2):
        documents.look_from(store, "a")
    with pytest.raises(Bug):
        documents.look_from(store, "b")
