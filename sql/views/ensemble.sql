-- ensemble(means, n_models, reducer, weights): one loss for several models, in nats per token, from `means` (one per model,
-- in the order of their scorer ids). reducer: mean, median, min, max, or weighted = sum(w * loss) / sum(w), `weights` in the
-- same order. Null unless there are exactly n_models losses and at least one: never over fewer models than named.
create or replace macro ensemble(means, n_models, reducer, weights) as
    case when n_models > 0 and list_count(means) = n_models then
        case reducer
            when 'mean' then list_avg(means)
            when 'median' then list_median(means)
            when 'min' then list_min(means)
            when 'max' then list_max(means)
            when 'weighted' then
                case when list_count(weights) = n_models then
                    list_dot_product(means, weights) / nullif(list_sum(weights), 0)
                end
        end
    end
