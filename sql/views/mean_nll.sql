-- mean_nll(nll_sum, n_response_tokens): a row's loss L(d), in nats per response token (docs/recipe.md, "Score and ensemble").
-- Null, never 0, when the count is 0 or missing, or when the sum is missing or not finite.
create or replace macro mean_nll(nll_sum, n_response_tokens) as
    case when n_response_tokens > 0 and isfinite(nll_sum) then nll_sum / n_response_tokens end
