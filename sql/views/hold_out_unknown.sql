-- hold_out_unknown(hold_out, domains, corpus): what to say of the first held-out domain that no scorer has, null where there is
-- none: it would hold out nothing, and nobody would know. `domains` are those of the misaligned and benign scorers of the
-- corpus (null: of all corpora). Units: none, names alone.
create or replace macro hold_out_unknown(hold_out, domains, corpus) as
    'hold_out ''' || [domain for domain in hold_out if not list_contains(coalesce(domains, []), domain)][1]
    || ''' matches no misaligned or benign scorer of ' || coalesce('corpus ' || corpus, 'any corpus') || '; their domains: '
    || coalesce(nullif(array_to_string(list_sort(list_distinct(domains)), ', '), ''), 'none')
