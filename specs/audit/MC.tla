--------------------------------- MODULE MC ---------------------------------
(* Bounds for Audit, and states that must be reachable. *)
EXTENDS Audit

(* A batch reached the disk, its head file's name did not. *)
Witness_HeadBehindLog == audit = "down" /\ tampered = "no" /\ head.size < signed /\ signed > 1

(* The outbox holds again what the log has. *)
Witness_SentAgain == audit = "open" /\ trimmed = 0 /\ acked > 0 /\ jsynced > acked

(* The log goes on after an older copy was put back, and says what it misses. *)
Witness_GapAfterPutBack == \E n \in 1..Len(Committed) : log[n] = Gap

(* Two holders have verified different histories. *)
Witness_Forked ==
    \E g, h \in Holders : ~IsPrefix(seen[g], seen[h]) /\ ~IsPrefix(seen[h], seen[g])

(* The service refuses a log whose end is gone. *)
Witness_Damaged == audit = "damaged" /\ tampered = "cut"

(* A revocation was lost with the power, and its caller had not been told. *)
Witness_RevocationNotYetDurable ==
    \E c \in Caps : Submitted("revoke", c) /\ ~Durable("revoke", c) /\ c \notin told
=============================================================================
