---------------------------------- MODULE MC ----------------------------------
(* States that must be reachable, or the checks say nothing. All constants   *)
(* are numbers, which the configurations give.                               *)
EXTENDS Handoff

\* B is gone, C knows it, and what A withdrew took effect since.
Witness_GiverGoneReceiverCalls ==
    gone /\ session = 0 /\ path = "direct" /\ \E i \in DOMAIN effects : effects[i].via = "direct"

\* The withdrawal reached the home before the deposit.
Witness_WithdrawBeforeDeposit ==
    /\ ca # <<>> /\ Head(ca).what = "not-found"
    /\ \E i \in DOMAIN bc : bc[i] = Msg("deposit", Head(ca).n)

\* Calls of one receiver took effect by the earlier, the proxied and the direct path.
Witness_ThreePaths ==
    {effects[i].via : i \in DOMAIN effects} = {"earlier", "proxied", "direct"}

\* A call came late, as A was told that it might.
Witness_LateFromTheDead ==
    \E i, j \in DOMAIN effects : i < j /\ effects[i].n > effects[j].n

\* A took a second gift after the first was lost with its session.
Witness_SecondGift == path = "direct" /\ mine = 2 /\ Len(taken) = 2

\* B's capability was revoked after B had gone, and A, still connected, is refused.
Witness_RevokedThoughGone ==
    gone /\ revoked /\ path = "direct" /\ child[mine].live /\ ~LiveChild(mine)
=============================================================================
