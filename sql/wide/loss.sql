-- One row is one row of the table wide_rows (here of place, nll_sum and n_response_tokens under one scorer), with its mean loss.
-- Units: nll_sum in nats, mean_nll in nats per token, null where there is no loss. Key: place.
select place, mean_nll(nll_sum, n_response_tokens) as mean_nll
from wide_rows
