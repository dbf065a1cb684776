-- gap_named(score, gap_rel, gap_abs, gap_contrast, sum_gap): the gap that a score's name means.
-- Units: those of that gap (gap_rel a ratio, gap_abs and gap_contrast nats per token, sum_gap nats).
-- An unknown name is an error, so that a misspelt score never passes for a corpus without gaps.
create or replace macro gap_named(score, gap_rel, gap_abs, gap_contrast, sum_gap) as
    case score
        when 'gap_rel' then gap_rel
        when 'gap_abs' then gap_abs
        when 'gap_contrast' then gap_contrast
        when 'sum_gap' then sum_gap
        else error('no score is named ' || score || ': use gap_rel, gap_abs, gap_contrast or sum_gap')
    end
