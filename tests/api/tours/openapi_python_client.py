"""A tour with the client that openapi-python-client made; `made` is where it lies."""

from __future__ import annotations

import sys

from made import Client
from made.api.host import healthz
from made.api.images import list_images
from made.api.operations import list_operations, show_operation
from made.api.vms import create_vm, delete_vm, list_vms, show_vm
from made.models import (
    Accepted,
    AcceptedVm,
    CpuWish,
    Draft,
    Images,
    Operations,
    Problem,
    Vm,
    Vms,
    VmWish,
    VmWishPower,
)

client = Client(base_url=sys.argv[1])
assert healthz.sync(client=client).status == "ok"
images, vms, operations = (
    list_images.sync(client=client),
    list_vms.sync(client=client),
    list_operations.sync(client=client),
)
assert isinstance(images, Images) and images.items[0].meta.name == "tiny" and images.next_ is None
assert isinstance(vms, Vms) and isinstance(operations, Operations)
print("lists")
draft = create_vm.sync_detailed(
    client=client, body=VmWish(image="tiny", name="toured"), dry_run=True
)
assert (
    draft.status_code == 200
    and isinstance(draft.parsed, Draft)
    and draft.parsed.vm.meta.name == "toured"
)
made = create_vm.sync_detailed(
    client=client, body=VmWish(image="tiny", name="toured", power=VmWishPower.STOPPED)
)
assert (
    made.status_code == 202
    and isinstance(made.parsed, AcceptedVm)
    and made.parsed.vm.meta.name == "toured"
)
assert (
    show_operation.sync(made.parsed.operation.meta.id, client=client).spec.deed.kind
    == made.parsed.operation.spec.deed.kind
)
assert isinstance(show_vm.sync("toured", client=client), Vm)
print("created")
wrong = create_vm.sync_detailed(
    client=client, body=VmWish(image="tiny", name="not a name", cpu=CpuWish(count=0))
)
assert (
    wrong.status_code == 422
    and isinstance(wrong.parsed, Problem)
    and wrong.parsed.code == "invalid"
)
assert {finding.pointer for finding in wrong.parsed.details.errors} == {"/cpu/count"}
print("refused")
missing = show_vm.sync_detailed("nobody", client=client)
assert (
    missing.status_code == 404
    and missing.parsed.code == "not-found"
    and "nobody" in missing.parsed.detail
    and missing.parsed.hint
)
print("missing")
gone = delete_vm.sync_detailed("toured", client=client)
assert gone.status_code == 202 and isinstance(gone.parsed, Accepted)
print("deleted")
