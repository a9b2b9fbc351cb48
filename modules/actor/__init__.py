"""Actor: the policy (Mode-1), planners (Mode-2), subgoals, and the choice between both modes (LeCun
2022, 3.1 and 5)."""
