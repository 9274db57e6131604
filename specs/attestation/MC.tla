-------------------------------- MODULE MC --------------------------------
EXTENDS Attestation

TwoNodes == {"a", "b"}
OnlyA == {"a"}

-----------------------------------------------------------------------------
(* States that must be reachable, or the invariants say nothing.           *)

\* The answer of an open challenge was signed before a reboot.
Witness_RebootAfterQuote ==
  \E n \in Nodes, q \in quotes :
    q.node = n /\ q.nonce = open[n].nonce /\ q.good /\ q.boot < boot[n]

\* Another node has signed the nonce of an open challenge.
Witness_ForeignQuote ==
  \E n \in Nodes, q \in quotes : q.node # n /\ q.nonce = open[n].nonce /\ q.good

\* The adversary uses the evidence of a session that it took over after the quote: what the bound is for.
Witness_TakenOverWithinBound ==
  \E r \in Results : MayUse("adversary", r)

\* Good and not fresh.
Witness_StaleButGood ==
  \E n \in Nodes : verdict[n].is = "matched" /\ now >= verdict[n].taken + Bound + Skew

\* A node whose evidence had turned bad was rebooted, appraised anew, and may use that.
Witness_BackAfterFence ==
  \E n \in Nodes, r \in Results : floor[n] > 0 /\ MayUse(n, r)

\* Evidence has turned bad, no home has heard of it, and what was given before still works.
Witness_OnlyTimeEndsIt ==
  \E r \in Results : Live(r) /\ r.epoch < epoch[r.node]

\* Evidence has turned bad, and what runs has not been ended yet.
Witness_WorkOutlivesItsEvidence ==
  \E w \in work : w.epoch < epoch[w.node]

\* What runs goes on though its evidence is too old for anything new: it is drained.
Witness_WorkIsDrained ==
  \E w \in work : \A r \in Results : r.node = w.node => now >= r.taken + Bound

\* After a fence there is work again.
Witness_WorkAfterFence ==
  \E w \in work : floor[w.node] > 0
=============================================================================
