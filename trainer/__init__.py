"""A thin TRL trainer that keeps the order of a mix and adds the regulariser defences."""
