---------------------------------- MODULE MC ----------------------------------
(* Two hops: the home's own capability a, b derived from it for node n1, and *)
(* c derived from b for node n2.                                             *)
EXTENDS Revocation

MCHome == "home"

MCCaps == {"a", "b", "c"}
MCLineage == [x \in MCCaps |->
    CASE x = "a" -> {"a"} [] x = "b" -> {"a", "b"} [] x = "c" -> {"a", "b", "c"}]
MCNodeOf == [x \in MCCaps |->
    CASE x = "a" -> MCHome [] x = "b" -> "n1" [] x = "c" -> "n2"]

----------------------------------------------------------------------------
(* How often the holders of b and of c ask. *)
MCAsks11 == [x \in MCCaps \ {"a"} |-> 1]
MCAsks12 == [x \in MCCaps \ {"a"} |-> IF x = "c" THEN 2 ELSE 1]
MCAsks22 == [x \in MCCaps \ {"a"} |-> 2]

(* The same with d beside b, derived from a and used on c's node. *)
WideCaps == MCCaps \cup {"d"}
WideLineage == [x \in WideCaps |-> IF x = "d" THEN {"a", "d"} ELSE MCLineage[x]]
WideNodeOf == [x \in WideCaps |-> IF x = "d" THEN "n2" ELSE MCNodeOf[x]]
WideAsks == [x \in WideCaps \ {"a"} |-> 1]

(* More than any run that is checked. *)
TraceAsks == [x \in WideCaps \ {"a"} |-> 1000]

----------------------------------------------------------------------------
(* States that must be reachable, or the checks say nothing. *)

\* A grant is under way to a node that was told of the revocation already.
Witness_GrantAfterAck ==
    \E c \in Lent : grants[c] # {} /\ Lineage[c] \cap acks[NodeOf[c]] # {} /\ lease[c].left = 0

\* A remote still uses what is being revoked above it.
Witness_LeaseUnderRevocation ==
    \E x \in revoked \ returned : \E c \in Below(x) : Cardinality(Lineage[c] \ Lineage[x]) = 2 /\ lease[c].left > 0

\* Revoke returned by time alone: nobody acknowledged, though something had been lent.
Witness_ReturnedWithoutAck ==
    \E x \in returned : Below(x) \cap known # {} /\ \A n \in Nodes : acks[n] = {}

\* The lease's own clock lags by the whole skew.
Witness_ClockLags == \E c \in Lent : lease[c].gain = Skew /\ owed[c] <= Skew
=============================================================================
