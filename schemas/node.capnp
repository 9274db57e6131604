@0xd5c1a7e0b3f24609;
# The operator's view of one node, served by the node service.

using Cap = import "capability.capnp";
using Kernel = import "kernel.capnp";

interface Node extends(Cap.Capability) {
  status @0 () -> (status :Kernel.KernelStatus);
  # Needs "read".
  addTenant @1 (name :Text, holder :Data, slotQuota :UInt32) -> (id :UInt32);
  # Needs "admin". Durable. `name` is 1 to 20 of a-z, 0-9 and '-'.
  tenants @2 () -> (tenants :List(Kernel.Tenant));
  # Needs "list".
  tree @3 (tenant :UInt32, all :Bool, max :UInt32) -> (nodes :List(Kernel.TreeNode), truncated :Bool);
  # Needs "tree".
  drain @4 () -> ();
  # Needs "admin".
  shutdown @5 (now :Bool) -> ();
  # Needs "admin".
}
