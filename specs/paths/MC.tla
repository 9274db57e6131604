-------------------------------- MODULE MC --------------------------------
EXTENDS Paths

TwoVats == {"memory", "scheduler"}

-----------------------------------------------------------------------------
(* States that must be reachable, or the invariants say nothing.           *)

\* A vat that holds an edge was killed and started again, and speaks to the other one.
Witness_EdgeAfterRestart ==
  starts = 3 /\ up = Vats /\ taken = {} /\ Speak("memory", "scheduler")

\* The network reaches a vat over the socket of another, which has ended since.
Witness_PassedOnAndLeft ==
  "memory" \notin up /\ <<Channel("udp", "network", "memory"), "to", "scheduler">> \in ends

\* One was taken over, and the other speaks to it as before.
Witness_BesideOneTakenOver ==
  taken = {"memory"} /\ up = Vats /\ Speak("memory", "scheduler")

\* An image of which nobody knows what is spoken at its socket, and which does not boot.
Witness_Refused ==
  image.udp # {} /\ image.quic = {} /\ starts = 0

=============================================================================
