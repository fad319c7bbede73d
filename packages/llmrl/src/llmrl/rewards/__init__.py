"""What a completion is worth: rules by name, reward checkpoints, users' functions, and weighted sums; no imports here.

reward      Sample, Reward: what a reward sees, and what another package subclasses to offer its own
names       build_rewards: `0.7*runs/reward + 0.3*literal`, and all rules by name
sums        Rewards: weighted sums, each term apart; what cannot be scored
calling     one call of somebody's function: a number or NaN for each completion, whatever happens
answers     literal, exact, numeric: is it the right answer?
formats     gsm8k, boxed, think, think_answer, json: is it written as asked for?
lengths     length, overlong: is it as long as wanted?
programs    parses, passes_tests: is it Python, and does it do what its tests want?
sandbox     a Python program in a process of its own, with limits
jail        what runs inside that process
functions   a function in a user's file, by `file.py:function`
checkpoints the score of a reward model

One number for each completion. None, NaN, infinity, an exception or a timeout make it unscorable: it leaves its group's
baseline, its advantage is 0, and it is counted. It is never taken for a reward of 0.
"""
