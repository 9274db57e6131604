---------------------------------- MODULE MC ----------------------------------
(* States that must be reachable, or the checks say nothing. The configurations give all constants. *)
EXTENDS Capability

\* A use that found its capability alive is not over, and a revocation of it waits.
Witness_WaitsForUse ==
  \E u \in Users, j \in pending :
    /\ j.kind = "end" /\ u \in j.guards
    /\ user[u].now.pc = "act" /\ born[user[u].now.cap].line \cap j.caps # {}

\* The same with a second one who waits for it.
Witness_SecondRevoker ==
  \E u \in Users, j \in pending :
    /\ j.kind = "again" /\ u \in j.guards
    /\ user[u].now.pc = "act" /\ born[user[u].now.cap].line \cap j.caps # {}

\* A reader has read the generation of a slot that another capability got meanwhile.
Witness_SlotUsedAgainUnderReader ==
  \E u \in Users :
    LET now == user[u].now IN
    now.pc \in {"parent", "again"} /\ table[now.at.slot].gen \notin {0, now.at.gen}

\* A capability that was revoked before its record was durable, which it is by now.
Witness_RevokedUnpublished ==
  \E j \in pending : j.kind = "record-first" /\ j.behind = 0 /\ j.caps \cap ended # {}

\* The last crash lost the record of a link's end and kept the one before it.
Witness_HalfARevocation ==
  crashes > 0 /\ \E i \in Live(f), t \in f.tombs : born[i].link = t.link

Witness_RefusedAfterCrash ==
  crashes > 0 /\ \E link \in refused : link[1] \in Live(f)
=============================================================================
