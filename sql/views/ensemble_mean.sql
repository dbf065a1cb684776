-- ensemble_mean(means, n_models): mean of `means` (nats per token, one per model, in a fixed order).
-- Null unless there are exactly n_models losses and at least one: never a mean over fewer models than named.
create or replace macro ensemble_mean(means, n_models) as
    case when n_models > 0 and list_count(means) = n_models then list_avg(means) end
