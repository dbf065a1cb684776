-- row_key(row_order, score, example_id, seed): the number by which a list of rows is sorted, smallest first.
-- Units: for best minus the score, for worst the score, for shuffled a hash of id and seed without a unit (another version of
-- DuckDB may shuffle otherwise). An unknown order is an error.
create or replace macro row_key(row_order, score, example_id, seed) as
    case row_order
        when 'best' then -score
        when 'worst' then score
        when 'shuffled' then (hash(example_id, seed::bigint) >> 11)::double
        else error('no order is named ' || row_order || ': use best, worst or shuffled')
    end
