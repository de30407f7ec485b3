"""A tour with the client that openapi-generator made for Python; `made` is the package."""

from __future__ import annotations

import sys

import made
from made.exceptions import NotFoundException, UnprocessableEntityException

client = made.ApiClient(made.Configuration(host=sys.argv[1]))
vms, images, operations = made.VmsApi(client), made.ImagesApi(client), made.OperationsApi(client)
assert made.HostApi(client).healthz().status == "ok"
assert images.list_images().items[0].meta.name == "tiny"
assert vms.list_vms().next is None and operations.list_operations().revision >= 0
print("lists")
answer = vms.create_vm_with_http_info(made.VmWish(image="tiny", name="walked", power="stopped"))
assert answer.status_code == 202 and answer.data.vm.meta.name == "walked"
assert operations.show_operation(answer.data.operation.meta.id).spec.target_name == "walked"
assert vms.show_vm("walked").spec.cpu.count == 1
print("created")
try:
    vms.create_vm(made.VmWish(image="tiny", name="not a name"))
except UnprocessableEntityException as error:
    assert error.data.code == "invalid" and "not a name" in error.data.detail
    print("refused")
try:
    vms.show_vm("nobody")
except NotFoundException as error:
    assert error.data.code == "not-found" and error.data.hint
    print("missing")
assert vms.delete_vm("walked").operation.spec.deed.actual_instance.kind
print("deleted")
