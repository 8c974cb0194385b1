# TransReID's optimisation for DCAL: the weights of the branches' losses do not decay.
_base_ = './transreid_sgd_120e.py'

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(log_vars=dict(decay_mult=0.0))))
